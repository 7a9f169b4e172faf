"""The ``dsrl`` command: one typed configuration, one conductor, one function per step."""
