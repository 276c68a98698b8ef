"""The learned inverse: frames in, a distribution over sets of molecules out."""
