"""The report on the whole chain, made of files in results/ alone: no network runs here.

page.py writes it all and lays it out by report.md.j2, report.html.j2 and style.css. verdict.py says in a sentence what
was saved and lost; tables.py, paper.py and times.py make the tables; captions.py lists the figures, figures.py draws
them.
"""
