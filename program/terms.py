"""The Program Terms (rule 13): which version is in force."""

TERMS_VERSION = "2026-01"
"""The version that `/terms` shows, and that a member accepts by taking a link there."""
