// Package logcli has the applets of the log: logread, with LEDE's options and
// output, and logger.
package logcli
