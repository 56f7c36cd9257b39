module turnkeeper.dev/clients/go

go 1.24.0

require (
	github.com/golang-jwt/jwt/v5 v5.3.0
	google.golang.org/grpc v1.76.0
	google.golang.org/protobuf v1.36.11
	modernc.org/sqlite v1.40.0
	turnkeeper.dev/gen/go v0.0.0
)

require (
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/mattn/go-isatty v0.0.20 // indirect
	github.com/ncruces/go-strftime v0.1.9 // indirect
	github.com/remyoudompheng/bigfft v0.0.0-20230129092748-24d4a6f8daec // indirect
	golang.org/x/exp v0.0.0-20250620022241-b7579e27df2b // indirect
	golang.org/x/net v0.42.0 // indirect
	golang.org/x/sys v0.36.0 // indirect
	golang.org/x/text v0.27.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20250804133106-a7a43d27e69b // indirect
	modernc.org/libc v1.66.10 // indirect
	modernc.org/mathutil v1.7.1 // indirect
	modernc.org/memory v1.11.0 // indirect
)

// Made from the protos by `make tools-go`.
replace turnkeeper.dev/gen/go => ./gen
