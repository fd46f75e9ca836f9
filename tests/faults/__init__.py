"""Faults against the whole program: real processes under a steady load are killed, stopped, cut off and starved.

`python -m tests.faults` (`make faults`) runs it. `servers` holds the processes, `wire` what lies between them,
`schedule` what happens when, `blows` how it is done, `load` who uses the program meanwhile, `record` what they sent and
were answered, and `tally`, which imports nothing of ours, looks afterwards whether anything was lost or happened twice.
"""
