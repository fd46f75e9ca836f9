"""The rows of the table, one module a group. Each gives what it measured, side by side, in as many rounds as asked for."""
