"""Batch jobs: a file of requests in, a file of answers out, no answer lost or computed twice.

The life of a line:

1. `scan` reads the whole input once: how many requests, which lines are no request, which names come twice, and a
   digest that tells an edited input.
2. The `feed` reads it again beside the engine, leaves out the lines that the journal holds, makes requests of the
   others and puts a window of them into an order that suits the engine.
3. The `runner` keeps the engine full and takes out what has ended.
4. The `writer` makes a row of each answer and appends it to the journal, which is on disk before it counts.
5. When every line is in the journal, `publish` writes the rows in the order of the input, and the manifest last.
"""
