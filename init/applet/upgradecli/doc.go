// Package upgradecli is the applet sysupgrade, with the options and exit codes of
// LEDE's (compatibility facts, section 5), and validate_firmware_image.
//
// The command judges the image and packs the settings; the upgrade itself runs
// under the supervisor (service sysupgrade), so that it goes on when the session
// that asked for it is gone. Where there is no bus, in failsafe mode, the command
// does it itself.
package upgradecli
