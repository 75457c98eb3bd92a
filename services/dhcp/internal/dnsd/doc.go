// Package dnsd is the DNS forwarder: names of the house answered from leases,
// hosts files and the configuration, everything else asked of upstream servers
// and remembered.
//
// What is in the cache is answered without building a message: the stored bytes
// are copied and the id, the flags, the spelling of the name and the times to
// live are put in. Everything else goes through miekg/dns.
//
// Bounds: the cache in entries and bytes, the questions on their way to servers
// in all and for each client, TCP connections in all and for each client. An
// answer that is too old is given when no server answers (RFC 8767), and a much
// asked one is fetched anew shortly before it ends.
//
// It does not do: zone transfers, updates, validation of DNSSEC (the bits and
// records pass through), DNS over TLS or HTTPS, authoritative zones.
package dnsd
