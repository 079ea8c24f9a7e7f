"""What cmibq costs beside its peers and beside the limits of the machine: `make bench`."""
