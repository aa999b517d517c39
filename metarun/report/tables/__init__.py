"""Tables as text, and the documents made of tables alone: Markdown, CSV, LaTeX, a terminal."""
