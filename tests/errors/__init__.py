"""The errors that a person can cause, as a table; tests/errors/test_errors.py goes through it."""
