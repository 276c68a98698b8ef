"""The napari plugin of decode: movies to molecules in a window, with the functions of the
command line."""
