"""Results as tables, figures and traces."""
