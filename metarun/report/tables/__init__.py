"""Tables of text about one run, several runs and a sweep, and their forms: Markdown, csv, LaTeX, a terminal."""
