"""One gRPC address for several servers: requests go where their answers begin first."""
