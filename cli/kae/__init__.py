"""The command line `kae`: parses, calls `keras_ae`, prints."""
