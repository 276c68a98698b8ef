"""Movies and tables of molecules on disk."""
