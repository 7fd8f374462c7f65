"""Studies that stand behind the claims of the documentation; each writes its numbers and is run as a module."""
