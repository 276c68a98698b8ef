"""The napari plugin of decode: movies to molecules in a window, by the functions of the command
line."""
