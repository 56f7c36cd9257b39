"""`make mesh`: three replicas behind a real Envoy with the shipped file, under load, while things break."""
