"""The PDF report: records in, PDF/UA-1 out."""
