"""The rows of the table, one module a group: each measures its sides turn and turn about."""
