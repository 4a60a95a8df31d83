"""The browser's view of an open database: `featuredb serve`, and pages in single files.

Pages are drawn on the server from the answers' views. Starlette and uvicorn are imported only here.
"""
