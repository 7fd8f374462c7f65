"""Damaged files by the thousand: every reader answers with what was written, or with one line that says why not."""
