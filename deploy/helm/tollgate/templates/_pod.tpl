{{/* What a pod of the checks has besides its containers. */}}
{{- define "tollgate.checkPod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: { runAsNonRoot: true, fsGroup: 65532, seccompProfile: { type: RuntimeDefault } }
{{- include "tollgate.schedule" . }}
{{- end }}

{{/* Where a pod may run, and how its image is pulled. */}}
{{- define "tollgate.schedule" -}}
{{- range $key := list "imagePullSecrets" "nodeSelector" "tolerations" "priorityClassName" }}
{{- with get $.Values $key }}
{{ dict $key . | toYaml }}
{{- end }}
{{- end }}
{{- end }}

{{- define "tollgate.checkBody" -}}
env:
  {{- include "tollgate.env" . | trim | nindent 2 }}
{{- with .Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- include "tollgate.securityContext" . | trim | nindent 2 }}
{{- end }}

{{/* The pod of a gateway or a keyring. */}}
{{- define "tollgate.pod" -}}
metadata:
  labels:
    {{- include "tollgate.meta" . | nindent 4 }}
    {{- include "tollgate.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- $annotations := merge (dict) (.Values.podAnnotations | default dict) (include "tollgate.annotations" . | fromYaml) }}
  {{- with $annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "tollgate.serviceAccount" . | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ eq .Values.mode "keyring" | ternary "10" (include "tollgate.stopSeconds" .) }}
  {{- with include "tollgate.schedule" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- range $key := list "affinity" "topologySpreadConstraints" }}
  {{- with get $.Values $key }}
  {{- dict $key . | toYaml | nindent 2 }}
  {{- end }}
  {{- end }}
  securityContext:
    {{- $security := dict "fsGroup" 65532 "fsGroupChangePolicy" "OnRootMismatch" }}
    {{- range $key, $value := .Values.podSecurityContext }}{{ $_ := set $security $key $value }}{{ end }}
    {{- toYaml $security | nindent 4 }}
  containers:
    - name: tollgate
      {{- include (eq .Values.mode "keyring" | ternary "tollgate.keyringBody" "tollgate.body") . | trim | nindent 6 }}
  volumes:
    {{- include (eq .Values.mode "keyring" | ternary "tollgate.keyringVolumes" "tollgate.volumes") . | trim | nindent 4 }}
{{- end }}
