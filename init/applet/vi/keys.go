package vi

import "unicode/utf8"

// Keys that have no character are negative.
const (
	keyUp rune = -iota - 1
	keyDown
	keyLeft
	keyRight
	keyHome
	keyEnd
	keyDelete
	keyPageUp
	keyPageDown
	keyUnknown
)

const keyEscape = 27

func ctrl(c rune) rune { return c & 0x1f }

// finalKeys are the last bytes of the sequences ESC [ X and ESC O X.
func finalKey(c byte) rune {
	switch c {
	case 'A':
		return keyUp
	case 'B':
		return keyDown
	case 'C':
		return keyRight
	case 'D':
		return keyLeft
	case 'H':
		return keyHome
	case 'F':
		return keyEnd
	}
	return keyUnknown
}

func tildeKey(param string) rune {
	switch param {
	case "1", "7":
		return keyHome
	case "4", "8":
		return keyEnd
	case "3":
		return keyDelete
	case "5":
		return keyPageUp
	case "6":
		return keyPageDown
	}
	return keyUnknown
}

// decodeKey takes one key from the front of b, as ECMA-48 terminals send them.
// n is 0 where more bytes are needed; with more false (the terminal has fallen
// silent) what is there is taken as it is, so that a lone ESC is a key.
func decodeKey(b []byte, more bool) (k rune, n int) {
	if len(b) == 0 {
		return 0, 0
	}
	if b[0] != keyEscape {
		if !utf8.FullRune(b) && more {
			return 0, 0
		}
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			return rawByte + rune(b[0]), 1
		}
		return r, n
	}
	if len(b) == 1 {
		if more {
			return 0, 0
		}
		return keyEscape, 1
	}
	if b[1] != '[' && b[1] != 'O' {
		return keyEscape, 1
	}
	for i := 2; i < len(b) && i < 16; i++ {
		c := b[i]
		switch {
		case c == '~':
			return tildeKey(string(b[2:i])), i + 1
		case c >= 0x40 && c <= 0x7e:
			return finalKey(c), i + 1
		case c < 0x20:
			return keyEscape, 1
		}
	}
	if more && len(b) < 16 {
		return 0, 0
	}
	return keyEscape, 1
}
