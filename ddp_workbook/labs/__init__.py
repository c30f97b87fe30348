"""Labs: the reader writes the parts of data-parallel training, and judges that run real ranks say what is wrong."""
