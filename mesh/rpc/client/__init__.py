"""gRPC client: channels for stock stubs, on libnghttp2 or on grpcio, with connection pools, balancing and retries."""
