"""Tables of molecules, filtered and checked."""
