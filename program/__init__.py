"""The rules of the program, pure: no clock, no database, no network. Each stands here once, under its number."""
