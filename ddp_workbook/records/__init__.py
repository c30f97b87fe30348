"""What is on disk: schemas of the files under results/, atomic writes, locks. No torch."""
