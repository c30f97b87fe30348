"""What only the notebooks and their readers need: notebook helpers, notebook runner, doctor, restart lab."""
