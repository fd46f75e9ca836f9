"""What the program costs, next to what its engine gives, another engine, and PostgreSQL alone: `make bench`.

Absolute figures say as much about the machine as about the program. So everything is measured twice in one run, turn
and turn about, and the quotient counts. See docs/performance.md.
"""
