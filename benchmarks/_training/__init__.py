"""Networks, data sets and training runs that measure what pixel contrast gains."""
