"""`make chaos-tools`: a tool server over gRPC that is killed between the effect of a call and its answer."""
