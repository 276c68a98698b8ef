"""Tables of molecules to better tables."""
