{{- define "turnkeeper.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "turnkeeper.labels" -}}
{{ include "turnkeeper.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "turnkeeper.selector" -}}
app.kubernetes.io/name: turnkeeper
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "turnkeeper.host" -}}
{{ include "turnkeeper.name" . }}.{{ .Release.Namespace }}.svc.cluster.local
{{- end }}

{{- /* The calls by how long they take: each is SERVICE/METHOD of turnkeeper.v1. All others are short. */}}
{{- define "turnkeeper.streams" -}}
- ChatService/StreamMessage
- SessionService/WatchEvents
- SessionService/ExportSession
- ApprovalService/WatchApprovals
- AuditService/ExportAudit
{{- end }}

{{- define "turnkeeper.waits" -}}
- ChatService/SendMessage
- ChatService/GetTurn
- ApprovalService/WaitApproval
{{- end }}

{{- /* What a proxy repeats: each call is idempotent. An answer that has begun is never repeated. */}}
{{- define "turnkeeper.retryOn" -}}
connect-failure,refused-stream,reset,unavailable
{{- end }}

{{- define "turnkeeper.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* The settings that the chart decides on; `settings` cannot change them. */}}
{{- define "turnkeeper.settings" -}}
{{- $identity := .Values.identity -}}
{{- if not (or $identity.tls.secret $identity.trustNetwork (eq $identity.mode "forwarded")) -}}
{{- fail "identity.tls.secret: a Secret with the server's certificate is needed, or trustNetwork where a mesh encrypts" -}}
{{- end -}}
{{- if and (contains "mtls" $identity.mode) (not $identity.tls.secret) -}}
{{- fail "identity.tls.secret: a Secret with the server's certificate and the callers' CA is needed" -}}
{{- end -}}
{{- if and (or (eq $identity.mode "forwarded") (eq $identity.mode "mtls+jwt")) (not $identity.trustedPeers) -}}
{{- fail "identity.trustedPeers: the proxies that may carry others' credentials are needed" -}}
{{- end -}}
{{- $settings := dict
  "host" "0.0.0.0"
  "port" 50051
  "health_port" 50052
  "exporter" .Values.exporter
  "prometheus_host" "0.0.0.0"
  "prometheus_port" 9464
  "log_format" "json"
  "drain_delay" (printf "%ds" (int .Values.drain.delaySeconds))
  "drain_grace" (printf "%ds" (int .Values.drain.graceSeconds))
  "database" .Values.database.name
  "identity" $identity.mode
-}}
{{- if $identity.trustNetwork }}{{ $_ := set $settings "trust_network" true }}{{ end -}}
{{- if $identity.trustedPeers }}{{ $_ := set $settings "trusted_peers" (join "," $identity.trustedPeers) }}{{ end -}}
{{- if contains "jwt" $identity.mode -}}
{{- $_ := set $settings "jwt_issuer" (required "identity.jwt.issuer: the `iss` of the tokens is needed" $identity.jwt.issuer) -}}
{{- $_ := set $settings "jwt_audience" (required "identity.jwt.audience: the `aud` of the tokens is needed" $identity.jwt.audience) -}}
{{- $_ := set $settings "jwt_keys" (required "identity.jwt.keys: the URL of the issuer's JWK set is needed" $identity.jwt.keys) -}}
{{- end -}}
{{- if ne $identity.mode "none" }}{{ $_ := set $settings "principals" "/etc/turnkeeper/watched/principals.toml" }}{{ end -}}
{{- if .Values.limits }}{{ $_ := set $settings "limits" "/etc/turnkeeper/watched/limits.toml" }}{{ end -}}
{{- if .Values.audit.secret }}{{ $_ := set $settings "audit_key" "/etc/turnkeeper/audit/key.pem" }}{{ end -}}
{{- if .Values.agents }}{{ $_ := set $settings "agents" "/etc/turnkeeper/start/agents.toml" }}{{ end -}}
{{- if .Values.catalogue }}{{ $_ := set $settings "catalogue" "/etc/turnkeeper/start/catalogue.toml" }}{{ end -}}
{{- if .Values.tools.keys }}{{ $_ := set $settings "jwks_port" 50053 }}{{ end -}}
{{- if $identity.tls.secret -}}
{{- $_ := set $settings "tls_certificate" "/etc/turnkeeper/tls/tls.crt" -}}
{{- $_ := set $settings "tls_key" "/etc/turnkeeper/tls/tls.key" -}}
{{- if contains "mtls" $identity.mode }}{{ $_ := set $settings "tls_client_ca" "/etc/turnkeeper/tls/ca.crt" }}{{ end -}}
{{- end -}}
{{- range $name, $value := .Values.settings -}}
{{- if or (hasKey $settings $name) (eq $name "processes") -}}
{{- fail (printf "settings.%s: the chart sets it; docs/operations/kubernetes.md tells by which value" $name) -}}
{{- end -}}
{{- end -}}
{{- range $name := keys (merge $settings .Values.settings) | sortAlpha }}
{{ $name }} = {{ get $settings $name | toJson }}
{{- end -}}
{{- end }}
