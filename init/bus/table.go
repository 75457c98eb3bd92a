package bus

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"sort"
	"strings"
)

// Attr is one named value of a Table. Value is nil, bool, int16, int32, int64,
// float64, string, Array or Table after decoding; for encoding any value that
// Encode takes will do.
type Attr struct {
	Name  string
	Value any
}

// Table is an ordered list of named values: the arguments of a call, a reply,
// the content of an event.
type Table []Attr

// Array is a list of values without names.
type Array []any

// Get returns the value of the first attribute called name, else nil.
func (t Table) Get(name string) any {
	for i := range t {
		if t[i].Name == name {
			return t[i].Value
		}
	}
	return nil
}

// Has says whether there is an attribute called name.
func (t Table) Has(name string) bool {
	for i := range t {
		if t[i].Name == name {
			return true
		}
	}
	return false
}

// String returns the string called name, or "" if there is none or it has
// another type.
func (t Table) String(name string) string {
	s, _ := t.Get(name).(string)
	return s
}

// Encode turns a Table, a map with string keys (sorted), a struct (its json
// tags; omitempty and embedded structs as in encoding/json), or a pointer to
// one of these into a Table. nil is the empty table. Inside, integers become
// int32 if they fit and int64 otherwise, encoding.TextMarshaler a string.
func Encode(v any) (Table, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case Table:
		return v, nil
	}
	n, err := normalize(v, 0)
	if err != nil {
		return nil, err
	}
	switch n := n.(type) {
	case Table:
		return n, nil
	case nil:
		return nil, nil
	}
	return nil, fmt.Errorf("cannot send a %T as a table: want a Table, a map or a struct", v)
}

func shrink(v int64) any {
	if v >= math.MinInt32 && v <= math.MaxInt32 {
		return int32(v)
	}
	return v
}

// normalize turns any supported Go value into one of those a decoded Attr has.
func normalize(v any, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errDepth
	}
	switch v := v.(type) {
	case nil, bool, int16, int32, int64, float64, string, Table, Array:
		return v, nil
	case int:
		return shrink(int64(v)), nil
	case []string:
		a := make(Array, len(v))
		for i, s := range v {
			a[i] = s
		}
		return a, nil
	case encoding.TextMarshaler:
		if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer && r.IsNil() {
			return nil, nil
		}
		b, err := v.MarshalText()
		return string(b), err
	}
	r := reflect.ValueOf(v)
	switch r.Kind() {
	case reflect.Pointer, reflect.Interface:
		if r.IsNil() {
			return nil, nil
		}
		return normalize(r.Elem().Interface(), depth+1)
	case reflect.Bool:
		return r.Bool(), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return shrink(r.Int()), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		// Beyond int64 the bits are kept, as blobmsg_add_u64 does.
		return shrink(int64(r.Uint())), nil
	case reflect.Float32, reflect.Float64:
		return r.Float(), nil
	case reflect.String:
		return r.String(), nil
	case reflect.Slice, reflect.Array:
		a := make(Array, r.Len())
		for i := range a {
			e, err := normalize(r.Index(i).Interface(), depth+1)
			if err != nil {
				return nil, err
			}
			a[i] = e
		}
		return a, nil
	case reflect.Map:
		if r.Type().Key().Kind() != reflect.String {
			return nil, fmt.Errorf("cannot send a %T: map keys must be strings", v)
		}
		keys := r.MapKeys()
		sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
		t := make(Table, 0, len(keys))
		for _, k := range keys {
			e, err := normalize(r.MapIndex(k).Interface(), depth+1)
			if err != nil {
				return nil, err
			}
			t = append(t, Attr{k.String(), e})
		}
		return t, nil
	case reflect.Struct:
		return appendStruct(make(Table, 0, r.NumField()), r, depth)
	}
	return nil, fmt.Errorf("cannot send a %T over the bus", v)
}

// field is what a struct field is called on the bus.
type field struct {
	name      string
	omitEmpty bool
	embedded  bool
}

func fieldOf(f reflect.StructField) (field, bool) {
	tag, tagged := f.Tag.Lookup("json")
	name, opts, _ := strings.Cut(tag, ",")
	if tag == "-" || !f.IsExported() && !f.Anonymous {
		return field{}, false
	}
	if f.Anonymous && (!tagged || name == "") && f.Type.Kind() == reflect.Struct {
		return field{embedded: true}, true
	}
	if !f.IsExported() {
		return field{}, false
	}
	if name == "" {
		name = f.Name
	}
	return field{name: name, omitEmpty: strings.Contains(opts, "omitempty")}, true
}

func appendStruct(t Table, r reflect.Value, depth int) (Table, error) {
	rt := r.Type()
	for i := range rt.NumField() {
		f, ok := fieldOf(rt.Field(i))
		if !ok {
			continue
		}
		v := r.Field(i)
		if f.embedded {
			var err error
			if t, err = appendStruct(t, v, depth+1); err != nil {
				return nil, err
			}
			continue
		}
		if f.omitEmpty && isEmpty(v) {
			continue
		}
		e, err := normalize(v.Interface(), depth+1)
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", f.name, err)
		}
		t = append(t, Attr{f.name, e})
	}
	return t, nil
}

func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map, reflect.String, reflect.Array:
		return v.Len() == 0
	case reflect.Struct:
		return false
	}
	return v.IsZero()
}

// Decode fills the struct that v points to by its json tags; it also takes a
// pointer to a map with string keys or to a Table. Attributes without a field
// are ignored, fields without an attribute stay. An attribute of the wrong type
// is an error that is StatusInvalidArgument, so that a method may return it as
// it is. A number is accepted for a bool (not 0 = true).
func (t Table) Decode(v any) error {
	r := reflect.ValueOf(v)
	if r.Kind() != reflect.Pointer || r.IsNil() {
		panic(fmt.Sprintf("BUG: bus.Table.Decode into a %T, not a pointer", v))
	}
	return decodeValue(r.Elem(), t, "")
}

func mismatch(name string, want reflect.Type, got any) error {
	if name == "" {
		name = "message"
	}
	return fmt.Errorf("%s: expected %s, got %s: %w", name, want, describe(got), StatusInvalidArgument)
}

func describe(v any) string {
	switch v.(type) {
	case nil:
		return "nothing"
	case Table:
		return "a table"
	case Array:
		return "an array"
	case bool:
		return "a boolean"
	case string:
		return "a string"
	}
	return "a number"
}

func decodeValue(r reflect.Value, v any, name string) error {
	switch r.Type() {
	case reflect.TypeFor[Table]():
		if t, ok := v.(Table); ok {
			r.Set(reflect.ValueOf(t))
			return nil
		}
		return mismatch(name, r.Type(), v)
	case reflect.TypeFor[Array]():
		if a, ok := v.(Array); ok {
			r.Set(reflect.ValueOf(a))
			return nil
		}
		return mismatch(name, r.Type(), v)
	}
	if v == nil {
		r.SetZero()
		return nil
	}
	if r.CanAddr() && r.Kind() != reflect.Pointer {
		if u, ok := r.Addr().Interface().(encoding.TextUnmarshaler); ok {
			s, ok := v.(string)
			if !ok {
				return mismatch(name, r.Type(), v)
			}
			if err := u.UnmarshalText([]byte(s)); err != nil {
				return fmt.Errorf("%s: %w: %w", name, err, StatusInvalidArgument)
			}
			return nil
		}
	}
	switch r.Kind() {
	case reflect.Pointer:
		if r.IsNil() {
			r.Set(reflect.New(r.Type().Elem()))
		}
		return decodeValue(r.Elem(), v, name)
	case reflect.Interface:
		if r.NumMethod() == 0 {
			r.Set(reflect.ValueOf(v))
			return nil
		}
	case reflect.Bool:
		if b, ok := v.(bool); ok {
			r.SetBool(b)
			return nil
		}
		if n, ok := integer(v); ok {
			r.SetBool(n != 0)
			return nil
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if n, ok := integer(v); ok && !r.OverflowInt(n) {
			r.SetInt(n)
			return nil
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, ok := integer(v)
		if r.Kind() == reflect.Uint32 && n < 0 && n >= math.MinInt32 {
			n = int64(uint32(n)) // an unsigned number in 32 bits, as C sends it
		}
		if ok && n >= 0 && !r.OverflowUint(uint64(n)) {
			r.SetUint(uint64(n))
			return nil
		}
	case reflect.Float32, reflect.Float64:
		if f, ok := v.(float64); ok {
			r.SetFloat(f)
			return nil
		}
		if n, ok := integer(v); ok {
			r.SetFloat(float64(n))
			return nil
		}
	case reflect.String:
		if s, ok := v.(string); ok {
			r.SetString(s)
			return nil
		}
	case reflect.Slice:
		a, ok := v.(Array)
		if !ok {
			break
		}
		s := reflect.MakeSlice(r.Type(), len(a), len(a))
		for i, e := range a {
			if err := decodeValue(s.Index(i), e, fmt.Sprintf("%s[%d]", name, i)); err != nil {
				return err
			}
		}
		r.Set(s)
		return nil
	case reflect.Map:
		t, ok := v.(Table)
		if !ok || r.Type().Key().Kind() != reflect.String {
			break
		}
		m := reflect.MakeMapWithSize(r.Type(), len(t))
		for _, a := range t {
			e := reflect.New(r.Type().Elem()).Elem()
			if err := decodeValue(e, a.Value, a.Name); err != nil {
				return err
			}
			m.SetMapIndex(reflect.ValueOf(a.Name).Convert(r.Type().Key()), e)
		}
		r.Set(m)
		return nil
	case reflect.Struct:
		t, ok := v.(Table)
		if !ok {
			break
		}
		return decodeStruct(r, t, name)
	}
	return mismatch(name, r.Type(), v)
}

func decodeStruct(r reflect.Value, t Table, prefix string) error {
	rt := r.Type()
	for i := range rt.NumField() {
		f, ok := fieldOf(rt.Field(i))
		if !ok {
			continue
		}
		if f.embedded {
			if err := decodeStruct(r.Field(i), t, prefix); err != nil {
				return err
			}
			continue
		}
		for j := range t {
			if t[j].Name != f.name {
				continue
			}
			name := f.name
			if prefix != "" {
				name = prefix + "." + name
			}
			if err := decodeValue(r.Field(i), t[j].Value, name); err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// integer returns v as a whole number if it is one.
func integer(v any) (int64, bool) {
	switch v := v.(type) {
	case int:
		return int64(v), true
	case int16:
		return int64(v), true
	case int32:
		return int64(v), true
	case int64:
		return v, true
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int64(v), true
		}
	}
	return 0, false
}
