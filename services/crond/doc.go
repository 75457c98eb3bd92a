// Package crond runs what the files in /etc/crontabs say, one file a user, and is
// the command crontab that edits them.
//
// The syntax is that of busybox's crond, which LEDE has: five fields with lists,
// ranges, steps and names of months and days, the special words from @reboot to
// @hourly, and lines NAME=value for the environment of what follows. If both day
// fields are restricted, one that matches is enough. Times are the local zone's.
// When the clock is set forward by up to an hour the minutes between are made up
// for; when it is set back by up to an hour no minute runs twice.
package crond
