"""The errors that a person can cause, as a table; tests/test_errors.py goes through it."""
