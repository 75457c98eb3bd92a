package bus

import "strconv"

// Status is the result of a bus request (ubusmsg.h, enum ubus_msg_status). It is
// an error; StatusOK never appears as one.
type Status int

// The statuses and their wire values.
const (
	StatusOK               Status = 0
	StatusInvalidCommand   Status = 1
	StatusInvalidArgument  Status = 2
	StatusMethodNotFound   Status = 3
	StatusNotFound         Status = 4
	StatusNoData           Status = 5
	StatusPermissionDenied Status = 6
	StatusTimeout          Status = 7
	StatusNotSupported     Status = 8
	StatusUnknownError     Status = 9
	StatusConnectionFailed Status = 10
	StatusNoMemory         Status = 11
	StatusParseError       Status = 12
	StatusSystemError      Status = 13
)

// Error returns the text that the ubus command prints for the status.
func (s Status) Error() string {
	switch s {
	case StatusOK:
		return "Success"
	case StatusInvalidCommand:
		return "Invalid command"
	case StatusInvalidArgument:
		return "Invalid argument"
	case StatusMethodNotFound:
		return "Method not found"
	case StatusNotFound:
		return "Not found"
	case StatusNoData:
		return "No response"
	case StatusPermissionDenied:
		return "Permission denied"
	case StatusTimeout:
		return "Request timed out"
	case StatusNotSupported:
		return "Operation not supported"
	case StatusUnknownError:
		return "Unknown error"
	case StatusConnectionFailed:
		return "Connection failed"
	case StatusNoMemory:
		return "Out of memory"
	case StatusParseError:
		return "Parsing message data failed"
	case StatusSystemError:
		return "System error"
	}
	return "Unknown error: " + strconv.Itoa(int(s))
}
