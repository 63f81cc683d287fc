"""The HTTP side port: OpenAI's completions, probes, metrics and a page that draws them.

The life of a request: a guard checks its token and size (guards.py), a body becomes Calls (bodies.py), an Exchange
opens them at the Front and writes what comes, in the shapes that OpenAI's clients read (exchange.py, shapes.py), until
it ends or the client goes away. app.py has the list of routes, server.py what listens.
"""
