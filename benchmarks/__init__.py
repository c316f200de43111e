"""Programs that measure pixcontrast: what it costs and what it gains."""
