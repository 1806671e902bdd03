{{/* A gateway is named after its release, a sidecar's ConfigMap after the release of the workload's chart. */}}
{{- define "tollgate.name" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}-tollgate
{{- end }}

{{- define "tollgate.selector" -}}
app.kubernetes.io/name: tollgate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tollgate.meta" -}}
app.kubernetes.io/name: tollgate
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* For a pod's labels: the PodMonitor selects by it, alerts group by it. */}}
{{- define "tollgate.labels" -}}
tollgate/account: {{ .Values.account | quote }}
{{- end }}

{{/* For a pod's initContainers: a sidecar that starts before the app's containers and ends after them. */}}
{{- define "tollgate.sidecar" -}}
- name: tollgate
  restartPolicy: Always
  {{- include "tollgate.body" (dict "root" . "gateway" false) | nindent 2 }}
{{- end }}

{{- define "tollgate.body" -}}
{{- $gateway := .gateway }}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- with .root.Values -}}
image: {{ empty .image.digest | ternary (printf "%s:%s" .image.repository $tag) (printf "%s@%s" .image.repository .image.digest) | quote }}
args: [serve, --config, /etc/tollgate/tollgate.toml]
env:
  {{- /* [::] is both families, also in a cluster without IPv6. */}}
  - { name: TOLLGATE__LISTEN__PUBLISH, value: "{{ $gateway | ternary "[::]" "127.0.0.1" }}:8080" }
  - { name: TOLLGATE__LISTEN__TELEMETRY, value: "[::]:9464" }
  - { name: TOLLGATE__SPOOL__PATH, value: /var/lib/tollgate/spool }
  - { name: TOLLGATE__DRAIN__GRACE, value: {{ printf "%ds" (int .drainSeconds) | quote }} }
  {{- if .secret }}
  - { name: TOLLGATE__KEYS__SOURCE, value: file }
  - { name: TOLLGATE__KEYS__PATH, value: /var/run/secrets/tollgate }
  {{- end }}
ports:
  {{- if $gateway }}
  - { name: publish, containerPort: 8080 }
  {{- end }}
  - { name: telemetry, containerPort: 9464 }
{{- /* Every second: the app's containers start only after this probe passes. */}}
startupProbe:
  httpGet: { path: /startupz, port: telemetry }
  periodSeconds: 1
  failureThreshold: 60
readinessProbe:
  httpGet: { path: /readyz, port: telemetry }
  periodSeconds: 2
livenessProbe:
  httpGet: { path: /livez, port: telemetry }
  periodSeconds: 10
  timeoutSeconds: 5
resources:
  {{- toYaml .resources | nindent 2 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
  seccompProfile: { type: RuntimeDefault }
volumeMounts:
  - { name: tollgate-config, mountPath: /etc/tollgate, readOnly: true }
  {{- if .secret }}
  - { name: tollgate-key, mountPath: /var/run/secrets/tollgate, readOnly: true }
  {{- end }}
  - { name: tollgate-spool, mountPath: /var/lib/tollgate }
  - { name: tollgate-run, mountPath: /run/tollgate }
  {{- /* Hides the pod's service account token from tollgate; other containers may need it. */}}
  - { name: tollgate-no-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true }
{{- end }}
{{- end }}

{{/* For a pod's volumes. */}}
{{- define "tollgate.volumes" -}}
- name: tollgate-config
  configMap: { name: {{ include "tollgate.name" . }} }
{{- if .Values.secret }}
- name: tollgate-key
  secret: { secretName: {{ .Values.secret | quote }} }
{{- end }}
- name: tollgate-spool
  {{- if .Values.spool.claim }}
  persistentVolumeClaim: { claimName: {{ .Values.spool.claim | quote }} }
  {{- else }}
  emptyDir: { sizeLimit: {{ .Values.spool.size | quote }} }
  {{- end }}
- name: tollgate-run
  emptyDir: { medium: Memory, sizeLimit: 1Mi }
- name: tollgate-no-token
  emptyDir: { medium: Memory, sizeLimit: 1Mi }
{{- end }}
