"""One page of runs or of a table: their files -> plain data -> one HTML file, drawn by plotly in the browser.

Python reads and thins out; the scripts in ``assets/`` make figures of that data, so that a page that follows
a run gets new data alone. Nothing here loads plotly before a page is made.
"""
