"""Do the tests bite? Small changes are planted in the program one at a time, and the related tests are run."""
