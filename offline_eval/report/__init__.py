"""Pages, figures and tables of what was found."""
