{{/* A label value: at most 63 characters. */}}
{{- define "tollgate.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimAll "-." }}
{{- end }}

{{- /*
The name of all objects. A DNS label that begins with a letter, with room for suffixes and for what a
StatefulSet adds; a longer name ends with a hash, so that two long names stay two names. A sidecar's has the
name of its workload: subcharts of one release would otherwise share a ConfigMap.
*/}}
{{- define "tollgate.fullname" -}}
{{- $name := include "tollgate.name" . }}
{{- $full := printf "%s-%s" .Release.Name $name }}
{{- if eq .Values.mode "sidecar" }}
{{- $full = printf "%s-%s-%s" .Release.Name .Values.workload $name }}
{{- else if contains $name .Release.Name }}
{{- $full = .Release.Name }}
{{- end }}
{{- $full = .Values.fullnameOverride | default $full | lower | replace "." "-" }}
{{- if regexMatch "^[^a-z]" $full }}{{ $full = printf "t-%s" $full }}{{ end }}
{{- if gt (len $full) 48 }}{{ $full = printf "%s-%s" ($full | trunc 41 | trimSuffix "-") ($full | sha256sum | trunc 6) }}{{ end }}
{{- $full }}
{{- end }}

{{/* The labels of every object. */}}
{{- define "tollgate.meta" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimAll "-_." | quote }}
app.kubernetes.io/name: {{ include "tollgate.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: tollgate
app.kubernetes.io/component: {{ .Values.mode }}
{{- end }}

{{- /*
Of a gateway's pods only: hooks have another name, and another gateway of the release, which has an alias, too. As in
0.1: Kubernetes refuses a Deployment whose selector changes.
*/}}
{{- define "tollgate.selector" -}}
app.kubernetes.io/name: {{ include "tollgate.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* The name in the labels of the hooks' pods. */}}
{{- define "tollgate.hookName" -}}
{{ include "tollgate.name" . | trunc 57 | trimSuffix "-" }}-check
{{- end }}

{{/* The labels of the hooks' pods: no selector of the release selects them. */}}
{{- define "tollgate.hookLabels" -}}
{{- $labels := include "tollgate.meta" . | fromYaml }}
{{- $_ := set $labels "app.kubernetes.io/name" (include "tollgate.hookName" .) }}
{{- $_ := set $labels "app.kubernetes.io/component" "check" }}
{{- toYaml $labels }}
{{- end }}

{{/* For a pod's labels: monitors select by them, alerts group by account and region. */}}
{{- define "tollgate.labels" -}}
tollgate/name: {{ include "tollgate.fullname" . | quote }}
tollgate/account: {{ .Values.account | default "default" | quote }}
{{- $settings := include "tollgate.settings" . | fromJson }}
{{- $named := regexFind `onsmqtt(-vpc)?\.[a-z0-9-]+\.aliyuncs\.com` (get $settings "upstream.endpoint") }}
{{- with .Values.region | default (get $settings "fleet.region") | default (splitList "." $named | rest | first) }}
tollgate/region: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "tollgate.configmap" -}}
{{ .Values.existingConfigMap | default (include "tollgate.fullname" .) }}
{{- end }}

{{/* Whether the chart makes the service account: a keyring has one of its own, which is bound to no role. */}}
{{- define "tollgate.ownAccount" -}}
{{- $account := .Values.serviceAccount | default dict }}
{{- if or $account.create (and (eq .Values.mode "keyring") (not $account.name)) }}true{{ end }}
{{- end }}

{{- define "tollgate.serviceAccount" -}}
{{- $account := .Values.serviceAccount | default dict }}
{{- $account.name | default (ternary (include "tollgate.fullname" .) "default" (eq (include "tollgate.ownAccount" .) "true")) }}
{{- end }}
