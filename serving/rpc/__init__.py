"""gRPC: services over a Front, each in a file of its own, behind one guard on one port."""
