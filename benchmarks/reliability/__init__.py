"""The campaign that tries to break the package: by hand, with counts and seeds on record."""
