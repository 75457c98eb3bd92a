package topology

// SVG draws the topology.
func SVG(t *Topology) string { return "" }
