"""The contract: .proto files, compiled and checked, as frozen values that the edge, the sidecar and the graph share."""
